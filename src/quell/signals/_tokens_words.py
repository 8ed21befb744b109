"""Words that the public byte-pair vocabularies o200k and cl100k keep as one token, and letter pairs that they lack."""

from __future__ import annotations

_WORDS = """
aber ability able about above absolute abstract academic accept accepted access accessible account accounts
accur acid action actions activ active activities activity actor actual actually adapt adapter added adding
additional address addresses adds adjust admin administr adult advance advanced advert affected affiliate after
again agency agent agents ages ago agree agua ahead airport akan aktiv alarm album alert algo align alla alle
aller alles alloc allow allowed allows almost alone along alpha already also alta alter altern although always
amen amer among amount analysis anche anchor and anda ander anders android ange angle anim animal animals
animation annual anos another answer answers ante antes anti anything appe appear appearance append application
applications apply appoint appointment appro apps apro arch area areas aren args argument arguments aria arms
around array article articles artist artists arts asking aspect assembly assert assessment asset assets assign
assigned assist associated association async attached attack attempt attention attr attribute attributes audio
auth author authority authors auto autom automatic autor availability available avec average avoid await award
aware away awesome axios axis baby back background bags balance ball band bang bank banks bare bars base based
basic basis basket batch battery battle bear beat because been beer before begin being below bench benef bere
best beta better between bias bike bill binary bind binding bird birth birthday bits black blank block blocks
blog blood blue board boat body bold bomb bond bone bonus book booking books bool boolean boost boot border born
boss both bottom bound bout boxes boys brain branch brand brands bread break bridge brief bright bring broadcast
broken brown browser budget buff buffer build builder building built bundle burn business button buttons byte
bytes cache cake calcul calculate calendar call callback called calling calls came camera camp campaign campo
cancel candidate cannot cant canvas capt capture carbon card cards care carry cars cart case cases cash cast
catalog catch categories category caught cause cele cell cells cent center central centre cert certificate chain
chair challenge chang change changed changes changing channel channels chapter char character characters charg
charge charges chart chat cheap check checked checking checkout checks chem chemical cher chez chief child
children chip choice choices choose chosen church cidade circ circle cities city civil claim clar class classes
classic clean clear click client cliente clientes clients clin clip clock close closed closing cloth cloud club
cluster coach coal code codes coding coffee coin cold coll collect collection collections college colon color
colors colour column columns comb combat combine come comes comfort coming comm command comment comments
commercial commission commit common communication community como comp compact compan company compare comparison
compat compet complete completed completion complex component components comput computer conc concept concert
cond condition conditions conduct conf conference confidence config configuration confirm confirmed conn connect
connected connection connections cons consider consistent console const constant construct construction
constructor consult consumer cont contact contain contained container contains content contents contest context
contin continue contr contra contract contre contro control controlled controller controls conv conversation
conversion convert cook cookie cookies cool copies copy copyright core corr correct cost could count counter
countries country county cour course courses court cout cover coverage covered covers craft cream create created
creating creation creative cred credit crew criminal crit criteria critical cross crow crypt cult culture curr
currency current currently cursor cust custom customer customers cycle daily damage dance danger dark data
database datas dataset date dates datetime dating datos days dead default defined degree delay delivery delta
dent depend dere desc description design desk dess dest destination destroy detail details detect device dialog
dice dict dictionary diet diff difference different digit digital dimension dire direct direction directory
disable disc dish disk disp display dist distance distributed distribution district django doch document does
dogs domain done dont door double down download draft drag draw drawing dream dress drink drive driver drop drug
dump duration during dynamic each early earn earned earth ease east easy echo economic edge edges edit edition
editor educ effect effective effects eight eing either elect electric elem element elements elif elig elim ella
elle eller else email emails emit employee employees employment empresa empty enable enabled ended ending endl
ends enemy energy engine engineering ensure enter entered enterprise enth entity entr entre entries entry ents
enum enumer environment episode equal equip equipment error errors escape especially esper essa essay esse
essential esta estado estar estate este estimated esto estr evaluate evaluation even event events ever every
exact exam example examples excel except exception exchange exclusive execute execution exercise exist existing
exists exit expand expect expected expenses experience experiment expert expiry expl explicit export express
expression extend extended extends extension extent extern external extr extra extract eyes fabric face faces
fact factor factory facts fail failed failure fair fait fake fall false family fans fant farm fast father fault
favor favorite feature featured features feed feedback feel fell felt female fest fetch field fields fight
figure file filename files fill filled film filter filters final finance financial find finding fine finish
finished fire firm first fish fitness fits five fixed flag flags flash flat flex flight float floor flow flowers
focus focused fois fold folder follow font food foods foot football for force forced forces fore forest forget
form forma format formation formed former forms formula fort forth forum forward foto found foundation four
fragment fram frame framework free frequency fresh friend friendly friends from front fruit fuel full fully func
function functional functions fund future gain gallery game games gang gap gard gateway gear geme gender gene
gener general generate generated generation generic genre gent gere gesch gest gets getting gift girl give given
glass glob global goal going gold gone good goods google goto grab grad grade graduate gran grand grant graph
graphics grass gratis grav great greater green grid ground group groups grow grown growth grupo guard guess
guest guid guide haar habit hair half hall hand handle handler hands hang happy hard hardware hash have haven
having head header headers health healthy hear heard heart heat heavy heel height held hell help here hero
hidden hide high hire hist histor history hits hold holder holding holds hole holiday home homes hook hope hora
horse hospital host hotel hour hours house houses housing href html http https human hyper icon idea ideal ideas
ident identified identify identity idle iets ignore illustr imag image images immer impact impl implement
implementation implemented implements import important incident incl include included includes including income
increase inde index indic individual industry info inform information ingredients init initial initialize inline
inner input inputs insert inside inst install installed instance instances instant instead institution instr
instruction instructions instrument insurance inte integer integr intent inter interaction interest interesting
interface intern internal international internet interpret interval into intr invalid inventory invest iron isol
issue issued issues item items iter jack java jest jobs join joint jong jour journal jours json judge jump just
keep keeping kernel keyboard keys kick kids kill kind king know knowledge known kont label labels lag lain land
lang language languages larg large lassen last late later latest launch laws layer layers layout lead leader
leaders leading league learn learning least leave lect left legal legend legs length less lesson lets lett
letter letters leur leurs level levels lever library license licensed life lift light lights ligne like liked
likes limit limitations limited limits line lines link linked links list lista listed listen listener listing
lists liter little live living load loaded loading loan local located location locations lock log logger logging
logic login logo long look looking looks loop lose loss lost lots love lower lowest luck mach machine made magic
mail main maint maintenance major make makes making male mana manager mand mant many mapping margin mark marked
marker market marks mart mask mass massage master match matches matching material math matrix matter maybe mean
media medicine medium meer member members memory mens ment mental mention menu merc mere merge mesh mess message
messages meta metadata metal method metric micro middle might migration mile mill million mind mine miner mini
miss missing mission mist mixed mobile mock modal mode model modo module moment mond money monitor mont month
more mort most mother motion motor mount mouse mouth move movement moves movie movies moving much mult multi
multip multiple mund music must mysqli name named names namespace nation national native natural nature
navigation near necessary neck need needed needs negative neighbor nett network never new news next nice night
nine ning nivel noch node nodes noise nombre nome none norm normal north nost not note notes nova null number
numer numpy nums object objective objects objet obra observ occasion occup oder offer offers office official
offset often olan older once onde onder ones online only onto open opened opening oper operate operation
operations operator optim option optional options order ordered orders organ organic organization organizations
organized orient orig origin original other others otherwise otros out output outside over overall override
overs owned owner owners pack package packages packet padding page pages paid pain paint pair panel paper papers
para param parameter parameters params pare parent parents park parse parser part partial participants
particularly partner partners parts party pass passed password past patch path paths patient pattern payload
payment peace pending peng pent people per percent percentage perf perfect perform performance perhaps period
perm permission permissions permit pers person pert phase phen phone phot photo photos phys physical pick picked
picture pictures piece pieces pill pink pipe pitch place placed placeholder places plain plan plane planet plans
plant plants plate platform play played player players playing plays please plot plugin plus point pointer
points policy poll poly pool port portfolio portion pose posit position positions positive poss possible post
posted poster postgres posting posts pour power practice prec pred predict prefer preferred prefix preg premium
prepare prepared pres present presentation press pret pretty prev prevent previous price prices pricing prim
primary prime primer principal print printed printf prior priority priv privacy private prix prob problem proc
procedure process processed processing prod produ produce producer product production productos products produk
prof profile profit program progress proj project projects prom promise prompt pron proof prop proper properties
property props prot protect protected protein protocol prov prove provide provided provider providers psych
public publication publish published pull purchase pure purpose push puts python qual qualified quality quant
quantity quarter quel quer query quest question questions queue quick quiet quite quot quote quoted quotes race
radi radio radius rail rain rais raise raised rand random range rank rapid rate rates rather rating ratio reach
react reaction read reader reading ready real really rear reason rece received recent recht recommend
recommended record recover rect rede redirect redis reduce refer reference refresh refund reject related
relation relations release released remain remark remember remove removed rend render rent repair repeat replace
replacement reply report reported reports repository repr represent representation requ request requests require
required requires research reset resolution resolve resource resources resp respect rest restart resume return
returned reve reverse review reviews reward rich ride right rights ring rise risk river road robot rock role
roles roll roof room rooms root rose rough round route router routes routine rows rule rules running runs rust
safe said salary sale sales salt same sample samples sand sans save saved saving scale scan scene schedule
scheduled schema scheme school scient scope score scores screen script scroll search seat secret section
sections sector secure security seed seen segment sein select selection self sell selling send sender sending
sense sensor sent sentence serial serie series serv serve server service services session sessions set sets sett
setting settings seven shall shape share sheet shell shift ship shoot shop short shot show side sign signal
signed silver simple since sing single sink site sites size sizes skill skills skin skip sleep slot slots slow
small smart snap snow social socket soft software sold sole solid solution solve some something sometimes song
songs sono soon sorry sort sorted sound sounds source sources south space spaces span spec special species
specific specified spect speech speed spent spin split sport sports spot spread spring square stable star stat
status stem step ster stick stim stone stop stor stre string strip subs succ success such suggest suite summ
summer super support supported sure surface survey sweet switch symbol system systems table tables tags tail
take taken takes taking talk tank tant target task tasks teacher team tech teen tele tell temp temperature
template temporary tener tent term terr terror test tested testing tests text than that the them then there they
thin this thread thus ticket tickets tight tile time timer times ting tiny tipo tips title titles today todo
todos token tokens tone tool tools topic torch total touch tour tout town trace track trad trade trail train
trait tran trans transition tras tree trees trial trib trim trip trust trying tube turn type types uint ultimate
unable undefined under uniform union unique unit units unknown unless unos unsigned unter until update updated
updates upgrade upload upon upper urban usage used user username users uses using usual usually util vale valid
validate validation valor valu value values vari variable variables variant vary vector veget vent verb vers
vert very vest vice vida vide video videos vier view views ville viol virt virtual visible vision visit visited
visual voice void voir volt volume voor vote vous wait wake walk walking wall wallet walls want wanted warm
warning was wash watch water wave ways weak wealth wear weather website week weekly weeks weight weit welcome
well went were werk west what whatever wheel when where whether which while white whole whose wide widget width
wife wild will wind window windows wine winner winter wire wish with withdraw within without woman women wood
word words work worked worker workers working works world worth would wrap write writer writers writing written
wrong yang yard year years yellow yield your zelf zero zone
"""
ONE_TOKEN_WORDS = frozenset(_WORDS.split())
"""Alone or after one space exactly one token; after any one ASCII punctuation mark at most two with the mark."""

_PAIRS = """
bq fj fz gj gk gq hj jg jv jw jx jy jz kq kx kz lq mz nq oq qf qg qj qk qo qv qy qz rj tj tq uq vq vz wq wv wz
xg xh xj xk xq xu xv xw yf yj yq yv zg zj zq zr zv
"""
UNJOINED_PAIRS = frozenset(_PAIRS.split())
"""Pairs of lower-case ASCII letters that are not a token of both vocabularies."""
