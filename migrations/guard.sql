-- Who owns the schema or something in it, or may add to it, decides what everybody else calls here.
do $$
declare
    space record;
    strangers text;
begin
    select n.oid, n.nspowner as owner, m.oid as me,
        case
            when n.nspowner = m.oid then true
            when m.rolsuper then o.rolsuper
            else pg_has_role(n.nspowner, 'usage')
        end as is_ours
    into strict space
    from pg_namespace as n
    join pg_roles as m on m.rolname = current_user
    left join pg_roles as o on o.oid = n.nspowner
    where n.nspname = '{schema}';
    if not space.is_ours then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('the schema {schema} belongs to %s, who can change whatever is made '
                'in it', space.owner::regrole),
            hint = format('If %1$s is to own it, migrate as %1$s. If not, somebody made it '
                'beforehand: look at what is in it, then, as a superuser, drop it or let '
                'alter schema {schema} rename to {schema}_of_a_stranger; and migrate again.',
                space.owner::regrole);
    end if;
    -- Members of the owning role may do what the owner may.
    select string_agg(format('%s of %s', pg_describe_object(d.classid, d.objid, 0),
        o.refobjid::regrole), ', ')
    into strangers
    from pg_depend as d
    join pg_shdepend as o on o.classid = d.classid and o.objid = d.objid and o.deptype = 'o'
        and o.dbid = (select b.oid from pg_database as b where b.datname = current_database())
    where d.refclassid = 'pg_namespace'::regclass and d.refobjid = space.oid
        and o.refobjid <> space.me and not pg_has_role(o.refobjid, space.owner, 'member');
    if strangers is not null then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('in the schema {schema} somebody else owns %s', strangers),
            hint = format('Whoever calls it runs what its owner likes. Look at each; then, as a '
                'superuser, drop it or give it to %s; and migrate again.', space.owner::regrole);
    end if;
    select string_agg(case a.grantee when 0 then 'public' else a.grantee::regrole::text end, ', ')
    into strangers
    from pg_namespace as n
    cross join aclexplode(n.nspacl) as a
    where n.oid = space.oid and a.privilege_type = 'CREATE' and a.grantee <> space.me
        and (a.grantee = 0 or not pg_has_role(a.grantee, space.owner, 'member'));
    if strangers is not null then
        raise exception using
            errcode = 'insufficient_privilege',
            message = format('others may create what they like in the schema {schema}: %s',
                strangers),
            hint = format('revoke create on schema {schema} from %s; then migrate again.',
                strangers);
    end if;
end
$$;
